package build

import (
	"math"
	"math/big"
	"slices"
	"testing"
)

func TestWeights(t *testing.T) {
	for _, c := range []struct {
		name   string
		shares []share
		want   []uint32
	}{
		{"pods alone", []share{{3, 1}, {5, 1}}, []uint32{3, 5}},
		{"one gateway of four ports", []share{{6, 1}, {2, 4}}, []uint32{24, 2}},
		{"ports that share no divisor", []share{{1, 1}, {1, 2}, {1, 3}}, []uint32{6, 3, 2}},
		{"more ports than pods", []share{{1, 8}}, []uint32{1}},
		{"no common multiple in 32 bits", []share{{1, 65537}, {1, 65539}}, []uint32{32766, 32765}},
	} {
		if got := weights(c.shares); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func FuzzWeights(f *testing.F) {
	f.Add(uint32(3), uint16(1), uint32(5), uint16(4), uint32(1), uint16(8))
	f.Add(uint32(maxPods), uint16(7), uint32(maxPods), uint16(11), uint32(maxPods), uint16(13))
	f.Add(uint32(1), uint16(65521), uint32(maxPods), uint16(65519), uint32(1), uint16(65497))
	f.Fuzz(func(t *testing.T, p1 uint32, k1 uint16, p2 uint32, k2 uint16, p3 uint32, k3 uint16) {
		var shares []share
		total, multiple := uint64(0), big.NewInt(1)
		for _, s := range []share{{uint64(p1), uint64(k1)}, {uint64(p2), uint64(k2)}, {uint64(p3), uint64(k3)}} {
			s.pods, s.ports = 1+s.pods%maxPods, max(1, s.ports)
			shares = append(shares, s)
			total += s.pods
			k := new(big.Int).SetUint64(s.ports)
			g := new(big.Int).GCD(nil, nil, multiple, k)
			multiple.Mul(multiple, k).Div(multiple, g)
		}
		fits := new(big.Int).Mul(multiple, new(big.Int).SetUint64(total)).Cmp(big.NewInt(math.MaxUint32)) <= 0
		got := weights(shares)
		var sum uint64
		for i, w := range got {
			if w == 0 {
				t.Errorf("%v: weights %v, one is 0", shares, got)
			}
			sum += uint64(w) * shares[i].ports
			if !fits {
				continue
			}
			want := new(big.Int).Mul(multiple, new(big.Int).SetUint64(shares[i].pods))
			if want.Cmp(new(big.Int).SetUint64(uint64(w)*shares[i].ports)) != 0 {
				t.Errorf("%v: weights %v, of which %d does not divide exactly", shares, got, i)
			}
		}
		if sum > math.MaxUint32 {
			t.Errorf("%v: weights %v add up to %d", shares, got, sum)
		}
		// Rounded or not, each share is right but for one in each locality.
		for i, w := range got {
			exact := float64(shares[i].pods) / float64(total) * float64(sum)
			if d := math.Abs(float64(w)*float64(shares[i].ports) - exact); !fits && d > 2*float64(shares[i].ports)+float64(sum)/1000 {
				t.Errorf("%v: weights %v: share %d is %g off", shares, got, i, d)
			}
		}
	})
}
