"""Reports for auditors, regulators and the person concerned, from the verified log and the catalogue. Reads only.

Each module says what one report holds; `document` writes any of them as a page, JSON or CSV.
"""
