"""What every optimizer shares: the schedule of its rate, and the norm of gradients."""
