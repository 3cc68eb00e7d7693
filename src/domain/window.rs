//! Windows: one period of one group, `[start, end)`.
