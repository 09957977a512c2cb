package build

import "math"

// share is a locality's part of its priority: that of pods, divided among ports.
type share struct {
	pods  uint64 // at most maxPods
	ports uint64 // at least 1: the localities that have this share together
}

// weights returns, for each share, the weight of each of its localities. They
// divide exactly by a common multiple, so that each pod gets the same whichever
// way it is reached. Only where their sum would pass 32 bits (which clients
// refuse) are they rounded, down but never to 0 (which clients drop).
func weights(shares []share) []uint32 {
	var total, localities uint64
	multiple, exact := uint64(1), true
	for _, s := range shares {
		total += s.pods
		localities += s.ports
		multiple *= s.ports / gcd(multiple, s.ports)
		if multiple > math.MaxUint32 {
			multiple, exact = 1, false
		}
	}
	exact = exact && total <= math.MaxUint32/multiple
	out := make([]uint32, len(shares))
	for i, s := range shares {
		if exact {
			out[i] = uint32(s.pods * multiple / s.ports)
			continue
		}
		out[i] = uint32(max(1, s.pods*(math.MaxUint32-localities)/total/s.ports))
	}
	return out
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
