"""The results of a run: how they are kept, held against those on record, and made into a page of the documentation."""
