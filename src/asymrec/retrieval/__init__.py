"""From scores to ranked items: exact, over all items, with filters. Knows arrays only."""
