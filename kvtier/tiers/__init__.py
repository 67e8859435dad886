"""The tiers: RAM, the disk tiers below it, and the ladder that moves blocks between them."""
