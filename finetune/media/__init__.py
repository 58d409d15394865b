"""Images and videos: from headers for checks, to pixels for training."""
