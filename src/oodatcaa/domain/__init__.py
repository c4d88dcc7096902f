"""Frozen records, ports and pure rules; knows no other room."""
