"""After a promotion: is today still what the champion was chosen on, and does it see what it was trained on?"""
