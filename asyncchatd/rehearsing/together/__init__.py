"""The demo of several nodes: daemons that share one PostgreSQL, of which any may die."""

from __future__ import annotations
