// Package erasure computes the parity of stripes and rebuilds lost shards. It
// is pure: bytes in, bytes out, into buffers that the caller has.
//
// The code is systematic Reed-Solomon over GF(2^8), polynomial 0x11d: parity
// shard j is the sum over the data shards i of A[j][i] * data[i], byte by byte,
// where A is the lower m rows of the (k+m) x k Vandermonde matrix V[r][c] = r^c
// times the inverse of its upper k rows (the construction of Plank and Ding,
// 2003, as in klauspost/reedsolomon and Backblaze's library). Any k of the k+m
// shards give the others. With k = 1, A is all ones: parity is a copy. What
// parity means is on disk: golden vectors in the tests keep it as it is.
//
// # Order of work
//
// The same byte of all shards makes a byte of parity, so a stripe is encoded in
// columns of at most Piece bytes: k+m pieces of 64 KiB stay in a core's L2 cache
// while each is read once by the multiplication and once by the checksum.
// Measured, that costs a quarter of what whole shards of 1 MiB cost.
//
//	stripe, in the file's order            columns of row 0
//	row 0  [cell 0 | cell 1 | .. | k-1]    [0..64K) of each cell, then [64K..128K)
//	row 1  [cell 0 | cell 1 | .. | k-1]    ...
//
// Cells are multiplied where they lie; nothing is gathered or padded. Where a
// shard ends before the others a column is cut, and from there on a shared page
// of zeros stands in for it: so a short stripe costs the columns it has.
//
// Nothing here allocates once a Code has been used (scratch is pooled, and the
// matrices by which a set of lost shards is rebuilt are kept), but the library
// does: 900 bytes of coefficients a column where it multiplies by GFNI, some
// 100 ns of a column's 5 to 7 us.
package erasure
