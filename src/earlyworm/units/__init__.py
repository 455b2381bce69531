"""What can be removed of a network: where units live, how they are found, zeroed and cut out."""
