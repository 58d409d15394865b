"""LMDeploy needs a package of this name for adapters."""
