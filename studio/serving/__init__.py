"""Export jobs, checks, the plan for a card, gateways started, watched and stopped."""
