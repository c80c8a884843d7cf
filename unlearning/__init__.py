"""unlearning"""
