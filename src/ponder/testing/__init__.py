"""Laws that anyone can run on a technique of their own, and processes small enough to enumerate."""
