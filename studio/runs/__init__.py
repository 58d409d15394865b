"""Run folders: curves, sample answers, recipe differences, notes, why a run ended and how it goes on."""
