"""The commands of `mini-assistant`: what each takes, and what it does."""
