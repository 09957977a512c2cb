package peering

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// WritePaths writes answers as tab-separated columns for people, as `agent path`
// and `controlplane path` show them.
func WritePaths(w io.Writer, answers []PathAnswer) {
	fmt.Fprintln(w, "SERVICE\tPORT\tENDPOINT\tNODE\tPATH\tREASON\tVIA\tDETAIL")
	for _, a := range answers {
		via := ""
		if a.Path == mesh.ViaGateway && len(a.Gateways) > 0 {
			via = a.Gateways[0].String()
			if n := len(a.Gateways); n > 1 {
				via += fmt.Sprintf(" +%d", n-1)
			}
		}
		address := a.Address.String()
		if !a.Address.IsValid() {
			address = "-" // known to the gateway alone
		} else if a.Address.Port() == 0 {
			address = a.Address.Addr().String()
		}
		port := ""
		if a.Port != 0 {
			port = fmt.Sprint(a.Port)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%v\t%s\t%s\t%s\n", cmp.Or(a.Service, "-"), cmp.Or(port, "-"), address, cmp.Or(a.Node, a.Cluster), a.Path, cmp.Or(string(a.Reason), "-"), cmp.Or(via, "-"), a.Detail)
	}
}

// AllServed reports whether there is an answer and none is withheld.
func AllServed(answers []PathAnswer) bool {
	return len(answers) > 0 && !slices.ContainsFunc(answers, func(a PathAnswer) bool { return a.Path == mesh.None })
}
