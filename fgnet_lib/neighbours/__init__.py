"""Part II of the course, a module for each lesson; nothing else in the library imports them."""
