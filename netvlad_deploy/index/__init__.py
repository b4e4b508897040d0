"""An index of descriptors, which finds the nearest ones of a query without reading all of them one by one."""
