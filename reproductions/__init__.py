"""reproductions"""
