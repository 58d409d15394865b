"""A running gateway: its models, how they are built from the configuration, its life, its management routes."""
