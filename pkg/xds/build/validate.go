package build

import (
	"errors"
	"fmt"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// Validate reports everything for which a client could refuse a resource or pass
// over a part of it: the constraints in the messages' own definitions, inside
// every Any too; fields that the definitions do not have; and what gRPC and Envoy
// demand beyond them. It is for tests and for running under a debug flag: it
// costs far more than making the resource.
func Validate(r *discovery.Resource) error {
	if r.GetName() == "" || r.GetVersion() == "" {
		return fmt.Errorf("resource %q of version %q: want both", r.GetName(), r.GetVersion())
	}
	m, err := r.GetResource().UnmarshalNew()
	if err != nil {
		return fmt.Errorf("resource %q of type %q: %w", r.GetName(), r.GetResource().GetTypeUrl(), err)
	}
	errs := deep(m, string(m.ProtoReflect().Descriptor().Name()))
	name := r.GetName()
	switch m := m.(type) {
	case *endpoint.ClusterLoadAssignment:
		name = m.GetClusterName()
		errs = append(errs, assignmentErrors(m)...)
	case *cluster.Cluster:
		name = m.GetName()
		errs = append(errs, clusterErrors(m)...)
	case *route.RouteConfiguration:
		name = m.GetName()
		errs = append(errs, routeErrors(m)...)
	case *listener.Listener:
		name = m.GetName()
		errs = append(errs, listenerErrors(m)...)
	case *tls.Secret:
		name = m.GetName()
	}
	if name != r.GetName() {
		errs = append(errs, fmt.Errorf("the resource is of %q", name))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("resource %q: %w", r.GetName(), err)
	}
	return nil
}

// deep checks a message by its own ValidateAll, and then every message inside
// every Any in it, which ValidateAll does not open.
func deep(m proto.Message, path string) (errs []error) {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	return append(errs, inside(m.ProtoReflect(), path)...)
}

func inside(m protoreflect.Message, path string) (errs []error) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		content, err := a.UnmarshalNew()
		if err != nil {
			return []error{fmt.Errorf("%s of type %q: %w", path, a.GetTypeUrl(), err)}
		}
		return deep(content, path+"/"+string(content.ProtoReflect().Descriptor().Name()))
	}
	if n := len(m.GetUnknown()); n > 0 {
		errs = append(errs, fmt.Errorf("%s: %d bytes of fields that nobody knows", path, n))
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + "." + string(f.Name())
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
					errs = append(errs, inside(e.Message(), at+"["+k.String()+"]")...)
					return true
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				errs = append(errs, inside(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", at, i))...)
			}
		default:
			errs = append(errs, inside(v.Message(), at)...)
		}
		return true
	})
	return errs
}
