"""Specialising a retriever to a user's own documents: from a folder of files to a retriever and an honest report."""
