"""From words and facts to a Layout: pure arithmetic. ``name: all_reduce`` means strategies/all_reduce.py."""
