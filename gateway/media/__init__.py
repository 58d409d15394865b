"""Images from outside: checked from their headers, fetched safely, decoded and shrunk in worker processes."""
