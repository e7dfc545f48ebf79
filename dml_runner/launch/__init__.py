"""Who starts the ranks: this process, torch's elastic agent on this machine, or a launcher from outside."""
