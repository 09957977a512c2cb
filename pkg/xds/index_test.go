package xds

// count returns how many watches t has.
func (x *index) count(t topic) int { return len(x.watches(nil, t)) }
