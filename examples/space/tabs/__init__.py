"""The tabs of the page: what each computes, which needs no browser, and how it is laid out."""
