"""`make bench`: how soon a conversation answers, in ratios measured in one run."""
