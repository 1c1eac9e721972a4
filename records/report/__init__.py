"""stub"""
from pathlib import Path
def write_report(folders): print("REPORT", folders)
