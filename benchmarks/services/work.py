"""The work that every candidate does: its tables, its statements, and how many connections it has for them."""

from __future__ import annotations

CONNECTIONS = 10
"""Connections of every pool."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS items (id int PRIMARY KEY, name text NOT NULL, price numeric(8, 2) NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO items SELECT id, 'item ' || id, id * 1.25 FROM generate_series(1, 1000) AS id ON CONFLICT DO NOTHING;
INSERT INTO accounts SELECT id, 1000 FROM generate_series(0, 999) AS id ON CONFLICT DO NOTHING;
"""

ONE = "SELECT 1"
ROWS = "SELECT id, name, price FROM items WHERE id <= 20 ORDER BY id"
TAKE, PUT = (f"UPDATE accounts SET balance = balance {sign} 1 WHERE id = " for sign in "-+")
ACCOUNTS = 1000
