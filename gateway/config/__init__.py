"""What the gateway is told: settings, gateway.yaml's schema and reader, engines' options, command-line options."""
