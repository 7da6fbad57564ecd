"""The claims: every module here has a tuple ``CLAIMS``; one module for each kind of method."""
