"""Model shape and machine to predicted memory and time, and the choice that follows."""
