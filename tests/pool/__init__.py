"""The pool as a whole: lending and taking back, ageing, outages, hooks, the drain, and what it reports."""
