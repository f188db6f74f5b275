"""Numbers about models: costs and scores."""
