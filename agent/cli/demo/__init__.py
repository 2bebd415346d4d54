"""`quarry demo`: one volume from creation to deletion, in a temporary folder, on this machine."""
