"""Fine-tuning: a recipe in, an adapter, its scores and a merged model folder out."""

from __future__ import annotations

import os

# Before torch loads its OpenMP: threads that wait by sleeping, not by spinning. With another process on the cores,
# spinning made training on two of them four times slower; alone it makes no difference that we could measure.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
