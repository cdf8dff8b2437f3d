"""Where the canonical tables come from: the simulated market, public logs, or the user's own files."""
