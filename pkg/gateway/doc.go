// Package gateway admits TLS connections from other clusters to the pods of its
// own. It reads the ClientHello, looks up the server name in it, connects to a
// ready pod of that service and from then on only moves bytes: TLS runs end to
// end between client and pod, and the gateway holds no keys.
//
// What it admits comes in as Routes, from whoever knows the services that are
// exported and their ready pods. Everything else is refused, counted by its
// Reason, and where the client speaks TLS it is told by an alert.
//
// It is not for terminating TLS, for deciding who may call whom (the pod sees
// the client's certificate), for HTTP, or for anything but TCP. It learns nothing
// by itself: it does not watch Kubernetes, speak xDS or probe pods.
//
// Bytes go from socket to socket by splice(2) and never enter user space, so it
// runs on Linux only.
package gateway
