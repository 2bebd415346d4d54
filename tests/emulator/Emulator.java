// Starts fabric8's mock of the Kubernetes API on the given port of loopback, with objects that are kept; ends with its input.
import io.fabric8.kubernetes.client.server.mock.KubernetesCrudDispatcher;
import io.fabric8.kubernetes.client.server.mock.KubernetesMockServer;
import io.fabric8.mockwebserver.Context;
import io.fabric8.mockwebserver.MockWebServer;
import java.net.InetAddress;
import java.util.HashMap;
import java.util.List;

public class Emulator {
    public static void main(String[] arguments) throws Exception {
        var objects = new KubernetesCrudDispatcher(List.of());
        var server = new KubernetesMockServer(new Context(), new MockWebServer(), new HashMap<>(), objects, false);
        server.init(InetAddress.getLoopbackAddress(), Integer.parseInt(arguments[0]));
        System.out.println("ready");
        while (System.in.read() >= 0) {}
        System.exit(0);
    }
}
