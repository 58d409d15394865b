"""What fits a GPU: LMDeploy's memory and flags (`lensmith plan`), and machines' faults (`lensmith doctor`)."""
