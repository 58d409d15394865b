"""Jobs: child processes that outlive the studio, with their state in files."""
