"""A running studio, a browser, and small jobs, for the studio's tests."""
