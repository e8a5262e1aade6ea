"""What scripts/doctor.py looks for, by subject; `examination` puts them together."""
