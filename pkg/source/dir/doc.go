// Package dir reads clusters from folders of Kubernetes YAML: once, with Load,
// or watched for changes, with Source.
//
// A cluster folder holds cluster.yaml and any number of *.yaml, *.yml and *.json
// files, also in sub-folders. cluster.yaml declares the cluster:
//
//	name: east
//	network: east                    # default: the name
//	podCIDRs: [10.1.0.0/16]          # optional, as are the next two
//	serviceCIDRs: [10.101.0.0/16]    # default: those of the ServiceCIDR objects
//	nodeCIDRs: [192.168.1.0/24]
//
// The other files hold, in any number of documents and in List objects, Node,
// Service, EndpointSlice, Pod, Namespace and ServiceCIDR objects, as this prints
// them, and ServiceExport objects of the MCS API:
//
//	kubectl get nodes,services,endpointslices,pods,namespaces,servicecidrs -A -o yaml
//
// Of Pods only what source.Trim leaves is kept.
//
// Any other kind is an error: a file that is not meant for flatmesh should not
// lie here. Files and folders whose names begin with a dot, editors' backups
// (name~, #name#, name.swp), lost+found and files with other extensions are
// ignored. A file of no length at all is an error, since that is what a shell
// makes before the command whose output goes there has written.
//
// Reading is strict, as an API server's strict field validation is, and atomic:
// one error anywhere refuses the whole folder's new state, and the last good one
// stays in force. Two folders that declare the same cluster name are both told,
// with different Update.Source: what follows is the consumer's decision.
package dir
