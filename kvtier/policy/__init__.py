"""Policies: small objects that receive facts and return decisions. They never do I/O."""
