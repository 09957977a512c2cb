package route

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// answerTimeout is how long the kernel may take over one netlink message. It is
// there so that a lost answer does not hang the agent.
const answerTimeout = 10 * time.Second

// Table is flatmesh's part of the routing of one network namespace: the one that
// the thread was in which called Open. Its methods have to be called there too.
// One goroutine at a time may call Observe, Apply and Cleanup; Watch runs beside
// them, and so does Refuse.
type Table struct {
	o    Options
	nl   *netlink.Handle
	held held
}

// Open checks the options and opens netlink. It changes nothing. The caller
// closes the Table.
func Open(o Options) (*Table, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("routing options: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink for routes: %w", err)
	}
	if err := nl.SetSocketTimeout(answerTimeout); err != nil {
		nl.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	t := &Table{o: o, nl: nl}
	t.held.reset(Actual{})
	return t, nil
}

// Close closes netlink. Whatever the kernel holds stays.
func (t *Table) Close() { t.nl.Close() }

// failure is an operation that failed, until a look at the kernel says whether
// that matters.
type failure struct {
	op  Op
	err error
	// sure is set once a look at the kernel has confirmed it.
	sure bool
}

// Apply makes the changes in order. One that fails does not stop the others,
// except that nothing is taken away that would let traffic leave in plaintext
// because of the failure. A failure after which the kernel is as wanted all the
// same (the route was there already, or gone) is none. The errors name their
// operations and are joined.
func (t *Table) Apply(ctx context.Context, ops []Op) error {
	var failed []failure
	var errs []error
	for _, op := range ops {
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("%v: %w", op, err))
			break
		}
		f, exposes := exposer(op, failed)
		if exposes && !f.sure {
			failed = t.recheck(ctx, failed)
			f, exposes = exposer(op, failed)
		}
		if exposes {
			errs = append(errs, fmt.Errorf("%v: withheld until this succeeds: %v", op, f.op))
			continue
		}
		if err := op.apply(t); err != nil {
			failed = append(failed, failure{op: op, err: err})
		}
	}
	for _, f := range t.recheck(ctx, failed) {
		errs = append(errs, fmt.Errorf("%v: %w", f.op, f.err))
	}
	return errors.Join(errs...)
}

// exposer returns a failure because of which op must not be applied.
func exposer(op Op, failed []failure) (failure, bool) {
	i := slices.IndexFunc(failed, func(f failure) bool { return op.expose(f.op) })
	if i < 0 {
		return failure{}, false
	}
	return failed[i], true
}

// recheck returns the failures whose outcome is not there all the same.
func (t *Table) recheck(ctx context.Context, failed []failure) []failure {
	if len(failed) == 0 {
		return nil
	}
	a, _, err := t.own(ctx)
	if err != nil {
		return failed
	}
	var still []failure
	for _, f := range failed {
		if !f.op.holds(a) {
			f.sure = true
			still = append(still, f)
		}
	}
	return still
}

// Cleanup removes every rule and route of flatmesh's, known by Options.Protocol
// and Options.Table, in both families, and the table of what Refuse made, and says
// what it removed. It needs no interface, touches nothing else, and may be
// repeated. From then on traffic for remote ranges goes where the main table says.
func (t *Table) Cleanup(ctx context.Context) (removed []string, err error) {
	removed, err = t.cleanupRoutes(ctx)
	dropped, filterErr := t.dropFilter(ctx)
	if dropped {
		removed = append(removed, filterName(t.o))
	}
	return removed, errors.Join(err, filterErr)
}

func (t *Table) cleanupRoutes(ctx context.Context) (removed []string, err error) {
	before, _, err := t.own(ctx)
	if err != nil {
		return nil, fmt.Errorf("clean up table %d: %w", t.o.Table, err)
	}
	var ops []Op
	for _, r := range before.Rules {
		ops = append(ops, delRule{r})
	}
	for _, r := range before.Routes {
		ops = append(ops, delRoute{r})
	}
	err = t.Apply(ctx, ops)
	after, _, lookErr := t.own(context.WithoutCancel(ctx))
	if lookErr != nil {
		return nil, errors.Join(err, fmt.Errorf("see what is left in table %d: %w", t.o.Table, lookErr))
	}
	left := map[any]bool{}
	for _, r := range after.Rules {
		left[r] = true
	}
	for _, r := range after.Routes {
		left[r] = true
	}
	for _, r := range before.Rules {
		if !left[r] {
			removed = append(removed, r.String())
		}
	}
	for _, r := range before.Routes {
		if !left[r] {
			removed = append(removed, r.String())
		}
	}
	return removed, err
}

func families(a Actual) []mesh.Family {
	if a.IPv6 {
		return mesh.Families[:]
	}
	return mesh.Families[:1]
}
