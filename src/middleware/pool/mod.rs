//! How many connections a hyper client or a tonic channel may hold.
