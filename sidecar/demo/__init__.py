"""The main job without anything installed: embedded agent, model server and client.

Nothing in this folder is for production: its keys live in memory and its authority signs for
whoever asks.
"""
