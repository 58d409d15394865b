"""What requests and answers may hold, said once: for the gateway, the embedded engine and the OpenAPI document."""
